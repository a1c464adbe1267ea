"""Modules and a Bank that an earlier release has pickled load, and answer as they did."""

from __future__ import annotations

import base64
import pickle
import warnings
import zlib

import pytest
import torch
from torch import Tensor

import vecbank

X = torch.tensor(
    [
        [
            [-0.061178859, -0.619747102, -0.371813208, -1.287163496],
            [-0.518541574, 0.080497377, 1.948305726, 2.081894398],
            [-0.901035547, 1.13031888, -0.810611725, -0.204176277],
        ]
    ]
)
# The pickle, compressed, in base 85; and what the release that wrote it returned for X in evaluation.
WRITTEN: dict[str, tuple[str, list[list[object]]]] = {
    "VectorQuantize": (
        "c-q}qU1(fI6wWrAzs-M|{+NWCBBdL|HJh~CgxW-`G{|DK6=Z$TVfNnHy|=mlGdJl*0;$+GD+4WfD^`5*p-^AylMkXzU-"
        "}{_`XIiGA{4}*7pWlBGk5N8?j~vJi-q>WX6`-"
        "n&6zXbnRDh$R+E>1>}v`iKD0=bBDNMXmX(25W_!r>vBmUd67ZhaL&?dS;Qe6iY_Jlfc{}s4Zs}GzsPazaU=N#w5syMAZ%0MHREj>5%fz"
        "z--UV6|ErWcf8#Lep$RkBxH&n!kMPbUt3DBM9-4aHj!DX1g4;eOAQOUDSRID&U0d@TD>W=qP#=jq*_-"
        "FL=wO60WtnPUEb~F54ahuWwu`I{4nXT9cS_C6>+j0{CD0D-"
        "Qp)+O>L@ZUumb+uEkOCpAI0R8x9(9{n++@1Y0z#_U9&=mrI||M4rCZEx%_j><p~JSyZd*R-"
        "`!Hv^&?dmrUbjgJ?N6NmtJ!N(m~s<^9>7c=${o&4Pfw5M4&{zaxKgj;_-"
        "=DPG0)uONznGD+q4}vfisDwjVCx4oC@+yV`D%)tkM7%!6Jdx&R0B@ctm|sSD0|ssel2J@?m7z7IFj`6!>N}{~$_Oa4|@0sY`q(Dq>|}3"
        "41DXJc2aaUZ8=t8+7pAjjp(OH_|C8`G(Qh9nA9{RI<G-_@PEATGE+@#JF+|F|rAPjU`;6NWrj1HNp(kF`LcYx3y=RIr<T0m=UA`M-"
        "9Vw#XC0Z9+La;K8WG12%9#}(2h)7^$kM92ui^&Jq@lyx)ty}a^FJ;Mv#o5TLgPB=p_|Arn5>t_OzC&*18gC?eH7A7-"
        "%D*c5R<*M(4Ht^6e?v9FWaH*^J5NY1up@n`dQ{mCfWz;1_vk%{<#@fj0Fpr|v+Ct&*bHOMEbvonqql<F(gqSV{9XNKK51J=2}m`X23sF"
        "*Th%GBq{zKnbIUZAciavl|H`q*){d-lZ5mBm*y8hveynP8jsaQgvi}e0(xHbvQTPKvi-(s$y86DjB0H{)=eKC-TYjK|YyJoDX6Ib`Y~j"
        "RD>7H5qn1;b@p<($?QZUdwus}FTw(QQ616b9{u3U%h_u)-"
        "?t`i_OAcBe&bzt{n)|u%x7Pp_$qVd&dkh*Z{5iLeqd(eon!0SbAR7Bb8FYlyH~$kPtBfPzxBfx&&AlzCocr~KEe2fIO8oL<BtQ|@@&se"
        "ZK?zM?p+6j*oVq?R}nKsgPiMIj6Nm_B0D~r%VsAYC_&V)4GE(0xo?8-#R-|#&R_aJPD$QfI}2t0&L?@d<(u^rk_Pz%?^-"
        "YkwkXoW!aSeiowQ;pNJ@h>-"
        "l7r(SAx0O+gHT%5pO0A4d!Nkx%2tj&)Q#5lxQ9SS3s3cOpH_l^^KSSmdppBhcMJ|h=91wr%?T<4rm`RpnkD%5j<W$x2rrQH2IDSRT5zO"
        "O>FttKrvyJ_Xr(|O`!k+y(UOH%ETfb2A4u{+3FEd5JDvwFAZwK)>HB&DhrBGbU{hxiCSQdw;`%wsE<Kqmm{{JRhE{|L%CD?_D%TgSaea"
        "*)77%*>%ygyFebd^z}Wtf#!bS#@oyw!r^fFe*9Vt>n!C=28!&Yb)?mMVBc5;lqR*RESU5PfMFY}>GqsQ5Ylsptlx;97ih3k4Vo4hc<=|"
        "coQxuhP;RT_peNy+XcD1TqtMcBGN62!6i~1GYG<9Z*i^3Ao%NhgQ{)}#mJB7{|z_6*<O8aA?(0v}rA<~&=I~574@?8+rnq9Un@VH0Hb>"
        "+2i;v-Udw2BxyQZTwn0fu!gO4}*2Eu$j*unA-0GZFxf+!tdg%uY<&w$+m121^>zFv)g`7%?5ONqvt5bI-"
        "pKDcS?sNdaX{R}jUf6Geki(nrM|8s<e1XSQF~KsFe|g!+Zn82vqvT(NK_VxF!n0P{Ol-IM+e7hKzpBio44BK9EjDq!C%6B}~yZQdR3Wf"
        "^;DF~-1NFbPCu534%(ks@ZpO~rxBz#8l{4O<ogzreyo7-K~t4%}o+NV%wFVn>8=B%D-"
        "hk|#X^>{v+rM}UgU8aRh8Kn>+!Rm5JfrhPikhjqBB8d!;uU^`4VAx=g3k47n@j;eRoGl*Zz{0Bab)EN",
        [
            [
                [
                    [-0.004584722686558962, 0.328503280878067, -0.5040102005004883, -0.4506687819957733],
                    [-0.23585791885852814, 0.1642121821641922, -0.012133046053349972, 0.4855436682701111],
                    [-0.004584722686558962, 0.328503280878067, -0.5040102005004883, -0.4506687819957733],
                ]
            ],
            [[0, 1, 0]],
            0.0,
        ],
    ),
    "ResidualSimVQ": (
        "c-q}oZD<rn7`{s`ADl_NG)CL_fwoevSdL3fE=lz^)<%V1j2de>O3S#nw|6sUZ})b0HX%Yvq<-"
        "A#fKbOmTcMgCr9W(cv_eI^H9u77kD|4Oen3lYtx{Srw9qO@>ASbdc`+jSBc&efy)*Co%saFDKJ(0s`Hrru^AvxqaY&XDqB<B-"
        ")sRUtXh`R*en2)!(h`;JB=hn%euO`>hmZ0gtEGlWRHCMNp3Os9(GW8-l?@YutQIA#RBEcT7^#|yvd|+Yl~p<&L#9mmVa}RRLX-xFMI(u"
        "_hK#VL4Vs+IlQcz<B}z2a>1{ERvLPpXiA0?x3~)C8?l5-<p6|F9B4VPHr6@DQyq`6olxEDrx6JgSVL~x-#-"
        "*nbOYT94%CI<MB1wexC8sctl`wZ-"
        "!Hq1N9l6gOjmV@Tl~EGjZ^rQE^1!{hTacoO$p;}8&qiqG%o%D?MoU_XT&z{KB91s^V=YuOB<%2DDjJeBl|sQ~gERl;qOT9?S>gk(%H!%"
        "$j%(rZALh8Om>oB|rl}t<a9ayq^SEnTT(iVA%UrYEHBY)`rE8vcIOh#>>|s?inOHV6o1ZeY-Li@#Eh#6Qva>q(MUX{_VmgH~<b*|(Bmy"
        "d$nt_JeAW@LjyD$@sn3g#UxE~JEWl&;-"
        "!q+*%*RSz<JYy9H{mPwV8*eY)^}*IBLSq%1f31Z7QQZ@a2Vf6n4UKBRT{PqnUQ=~10OIu!Q3$1qjAS)QL{+cI#r@!<BUu@lWVdYUm7}^"
        "Z7_S1Si8X`jRk4bACG?0&_3D@}?sIZzYFe*}`78_O49065u)Ad4BNbo4zY!Krx4TZi?u|D9rn^1T5$W#kigdQOb++klUMXwom9aoS)qU"
        "F_+iSY#eps&<3b^XvnQZ>Cu;iO}&+T}rxv-<-"
        "(Al@se+i+BZNklKzu9}9y?%BTdC&ew$=HA2v3kswe*5UeX!Q7^=AMqk@4~e=TYLCEKEPw1m@nqr&*9&@pXZCkrQkOo7He38Lk0wDrJAr"
        "6Gn_4&#cc(6EdsHt``pGo)C#idVVR^c<#<CGgG!nQc)TfyU;O_Qq_cB%dq-q$1ewB?5#-gStL-"
        "yazOX%4zAfDP>AUFA#rN%X?N`ov)_*EY<^~F5C#AI$ABGEo=%wh+i{rwX*Z&ZzkBkfF>;4pWE?rP~AVG4))&XcSUxJ7x@3$VN*sys-MJ"
        "ZXNmI0eT=3{l5Mavyl!eo_6l5t}7(|S{^l<UEws>%vV5d%~*&l;fYqH~%76Nxm)b8ID1vyhT%NVi0l!a$I%OomX99up1;mvNhVE>9oMZ"
        "ZzW@p{3xY8?+M4+sbjzY%T761en<w4u>PHt&!F_FtZF>#>~P^pZ)PGMwDK@9UX6M?s<NqNmx0#LHOk7&kLvC&<kH(Iv;I1dBNT*nCG@!"
        "-WNUAcgkM;)C%F9RVSh^^luRU8|lJ3u{2YNa2k_Gq@ZnW-QjT8+zL8{EkBFaUMK__J}aC#{fph}|K1L+Jzf~Q`sJF_Z(;lN59@^Ic3rn"
        "8BL2eoimO7`*IVt#svAO=(k*;cbHk>$P6%_98f-"
        "mWmBD*sKD@6eCU`$I55SYl<9rSuENy&zsBD{C)5si1ifUy_+5wlgSOr|>l7^NArQ&Qs*<BuvEcXr%_o3|+iqSiTD&6L5WK~Q!_t`wFqM"
        "%fYldW2^sFq5>cVe{}OQ9sIfVg=<Yyu_8nw~FjB|`rKq#QfC",
        [
            [
                [
                    [0.42013105750083923, 0.10169254243373871, 0.19037902355194092, -0.560171365737915],
                    [-0.523900032043457, 0.1869819313287735, 0.23428678512573242, 0.4896189570426941],
                    [-0.27365556359291077, 0.5541486144065857, 0.030223693698644638, 0.32360395789146423],
                ]
            ],
            [[[0, 3], [3, 0], [2, 0]]],
            [1.008232593536377, 0.9158766269683838],
        ],
    ),
    "ProductQuantizer": (
        "c-qxfU1$?o6rLoLcD7oLU3bw&#K$a3sNMc-C~TmJ6$Y!VAYoy-"
        "+|1l$#!lvD?!D6zq0lY6{&7LUD<b&fgCGckZ;F__NI~$)hxN$^AAHzF)K@{!Gf7jEw&<JC2}$Oj^WAgL`OZD(Ea}%Kd$r~x_stWli2b>"
        "&?`Nxw+My*-5Mp1rX9-g>b+RR!Src7Vzx<^ZRYn?uVb^#4vbrd@p(<v$LIhzPl+r-OuvBU-GBR1DbdD>zT~KB@SriJ_gXI8Xq!_xMjRf"
        "&IWoUjFtY>6@3&!COmkIcQJc?~pVzh#aH9<I_CMRN=wiLhA=Y70+^uvKOcTVojF2#@kmw?~JK+6<T5FErKs6{<A51zQx4`Ki)^n=E8h4"
        "2U>zU^W^h+io5fl$<{1aSzG2Z_Z%&lHj%<PK#bNSg6N0#>dsf*w;Z=#dTTmxEqY4?{RJQ-"
        "}y%bve+iW(a*p!Ete_CF~1gg&ly&jf{<s4-FlL&rohGXxX)@VURFW(<0Dkz}laIwiz~tv#D0vw4T>*AMZW1-"
        "1y_ugU0=*(~aB5Zsd*U|2LlOe(`($?<@J?)Bo15zFe;NtgO^;4BoA$pYi;`M{nw*x6+OB^@nx!kD67cX2wn3jGtGg0dKMMQ6_;ek5~fe"
        "f)s5#!EC~aeZ;jyl=)dDV4qAjSyE1a#z{@4w{j-Na=G!tqr+pvBVCy=Hp@f@7BXRI?Pn?fwQmR0=M=CVJEtx>d)iFuJgl^doY>+-"
        "=0<)U9~t`X+gG{+`yH<I7qSf?4@Wm!O@}g#eCnfWL?eg(BibDcaU#@ZC4WRkY|SlTW}_-"
        "2$Z58)rY*Vii>g!nGjcg9g`U@~R?~6^Dp9rpKiDlr3$Acbw6EMo>|2Mx-U6<1WML>#dlfUVhFS0C{*9VV&e(-"
        "GkV23RCEm6Dr%uIs+k>s1{1rrcBZBho6AV;=;o_0z$Vk|31?od4VUh^0%(zTi)COH7vx$XkYAXNk-tM!nrtZmI7OhlVQHk=lK-"
        "{t;K>2=kr0EPZqNdvA2{l&pEp<WuP$oWM8162lq!)%y#3K;cF#*?vJ+rNs)oE7*Ja@pX4K31WM%EmBVKMs|gXMwf",
        [
            [
                [
                    [-0.11664776504039764, -1.0169707536697388, -0.3882295489311218, -0.3341872990131378],
                    [-0.11664776504039764, -1.0169707536697388, 0.9523331522941589, -0.4623654782772064],
                    [0.420080304145813, 1.1290358304977417, -0.6079285740852356, -0.3624832332134247],
                ]
            ],
            [[[0, 1], [0, 2], [3, 3]]],
            0.9759967923164368,
        ],
    ),
    "Bank": (
        "c-noF&rcIU6vwyimSO=ZKQs!)7`@a48-o0hgOm^@$SNwvWG^_G-JP~;m!0m;ETkq)Fhn9|h%t;eJz~6hB+<nF3*Pi(Ja92yj5iYwzGXo"
        "v5a%$HdG9mdc|T^B)R)@{WoL-"
        "i1!5Z5E$6~X3Uwk}*5$>=vL>^lnfuswZMP^_MGLB6AI}p`d<IU@jEtaAh&EY~0v%3aBU)iGOF0y9+ktH-"
        "@`(}Hj)gdJ8THY^0O)5$TZA!KaFIxnK@P<hD)@9B8C6agP!n2AQI_J*($4m)$=~N5zP)ogw-mqiJppsgQ?hynQmFWpQ<FMq0b;SK>%{="
        "j+rZ=4oI3;&*Rrwe#h>bFF!E}JAZ9-"
        "z%uCcfHLEAV$V$}bUQ&zeVO?yOdrg|EtDy#Ui(X1og8=T#>ZuTpLiQAMCx!GR1kUe8#<UmHj{`G0I6O4c-`_uUdEm<Euovl?mB34A-"
        "80-%?}FN#ryRw`aIQOQj?$-"
        "m&TnOw>+4fp^})H#dZwDlZ;TW_{`hphe*eo_{y}~7!_Rl`^ILP7@k=*e=T{O|{>{{{vA*eK{pR)M{PcKx{RRFy)^TBNthVv(s(d16rKV"
        "^}O<j?is>N2qzC!IBXdaXf+SPK~w}?-"
        "yYqrV5cQ7kCoDr&FV<u+;(TiN_qDok51`XwVj{q^k<#Q>zkb%weBK9p*@d+wXT4u6z3UoyKKi7WqNn|rr2pp%;Eoa1WRG|JLzNgWO7Hw"
        "Wa;kn`-apnMlokd(_$i$GRwaaw=We$dU_OR!OJ30{Km=k0{of?jx*zY)~-"
        "4i|X{}8>03CbF8Xh!qY3LLWY3sVSwq;H#0u44|tzKacqKvz>J>=>lGDw^Qqn&n*@a&SXyVC4P)&VhT$",
        [
            [
                [
                    [2.589646816253662, -0.4786287844181061],
                    [7.073388576507568, 1.0905565023422241],
                    [0.749289333820343, -0.05499234423041344],
                ]
            ],
            [[[0, 4], [2, 4], [4, 3]]],
        ],
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_an_old_pickle_answers_as_it_did(name: str) -> None:
    text, want = WRITTEN[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the old places of its classes
        module = pickle.loads(zlib.decompress(base64.b85decode(text)))
        with torch.no_grad():
            found = module.topk(X, 2) if isinstance(module, vecbank.Bank) else module(X)
    got = [value for value in found if isinstance(value, Tensor)]
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, torch.tensor(theirs).to(ours.dtype))
    again = pickle.loads(pickle.dumps(module))  # and is written by the new names
    assert type(again) is type(module)
    if not isinstance(module, vecbank.Bank):
        module.train()(X.clone().requires_grad_())[0].sum().backward()
